"""Chains of stages: their costs, dynamic programs and schedules."""
