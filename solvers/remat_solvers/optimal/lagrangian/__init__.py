"""Lagrangian bounds and plans for networks of many identical layers."""
