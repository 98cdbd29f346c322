"""The stages of ``scripts/bench gpu``: one module for each kind, whose ``main`` measures and saves figures.

A stage runs in a process of its own. What it saves with ``figures.save`` is kept even if it crashes afterwards.
"""
