"""Certificates and the smallest budget on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from remat_solvers.formats import load_certificate, load_plan, load_problem, save_certificate
from remat_solvers.optimal.certify import certify
from remat_solvers.result import Order
from tests.paths import CORPUS
from tests.remat.cli.invoke import BAD_INPUT, FAILED, NO_PLAN, run, run_json

CHAIN = CORPUS / "chain50.json"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    path = tmp_path / "certificate.json"
    save_certificate(path, certify(load_problem(CHAIN), 20, order=Order.GIVEN, at=(49, 52, 60)))
    return path


def test_a_certificate_is_proven_again(certificate: Path) -> None:
    claimed = load_certificate(certificate)
    answer = run_json("check-certificate", CHAIN, certificate)
    assert answer["valid"] is True
    assert answer["bound_ns"] == answer["claimed_bound_ns"] == claimed.bound_ns
    assert (answer["budget_bytes"], answer["order"]) == (20, "given")
    assert "no plan is faster than" in run("check-certificate", CHAIN, certificate).stdout


def test_a_certificate_that_claims_too_much_fails(certificate: Path) -> None:
    document = json.loads(certificate.read_text())
    certificate.write_text(json.dumps({**document, "bound_ns": document["bound_ns"] + 1}))
    answer = run_json("check-certificate", CHAIN, certificate, code=FAILED)
    assert answer["valid"] is False
    assert "claimed" in answer["message"]
    assert "rejected" in run("check-certificate", CHAIN, certificate, code=FAILED).stderr
    certificate.write_text("{}")
    run("check-certificate", CHAIN, certificate, code=BAD_INPUT)
    run("check-certificate", CHAIN, CHAIN, code=BAD_INPUT)


def test_the_smallest_budget_with_its_certificate(tmp_path: Path) -> None:
    plan, proof = tmp_path / "plan.json", tmp_path / "certificate.json"
    answer = run_json("solve", CHAIN, "--budget", "min", "--time-limit", 3, "-o", plan, "--certificate", proof)
    assert answer["budget_bytes"] == answer["peak_bytes"] == answer["peak_bound_bytes"] == 3
    assert "no plan has a smaller peak" in answer["reason"]
    assert load_plan(plan).peak_bytes == 3
    assert load_certificate(proof).budget_bytes == 2
    assert "no plan fits within 2 B" in run("check-certificate", CHAIN, proof).stdout
    assert answer["certificate"] == json.loads(proof.read_text())


def test_a_solver_without_certificates_reports_it(tmp_path: Path) -> None:
    proof = tmp_path / "certificate.json"
    done = run("solve", CHAIN, "--budget", "min", "--solver", "revolve", "--certificate", proof)
    assert "has no certificate" in done.stderr
    assert not proof.exists()


def test_the_floor_is_shown_with_a_plan_and_without() -> None:
    assert "floor   3 B" in run("solve", CHAIN, "--budget", "60%", "--time-limit", 2).stdout
    done = run("solve", CHAIN, "--budget", 2, code=NO_PLAN)
    assert "Every plan needs 3 B during op50 (B50): 1 B output of op48 (F49)" in done.stderr
