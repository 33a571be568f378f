"""One package a kind of stage: read inputs, call what does the work, leave the artifact."""
