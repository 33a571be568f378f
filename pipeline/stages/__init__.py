"""One file a stage: read inputs, call what does the work, leave the artifact."""
