"""Checks of hyper-parameters, written once: each raises one line that names the field and says what to write."""
