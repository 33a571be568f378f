"""What stands between the runner and the stages: settings, kinds, artifacts, resume states."""
