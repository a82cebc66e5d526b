"""What things cost: a step of each method, scoring, loading, a sweep beside its trials, and opening the
commands.
"""
