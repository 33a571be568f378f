"""How good a reward model is: accuracy, calibration, comparison with people."""
