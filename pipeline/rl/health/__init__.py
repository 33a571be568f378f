"""Whether a run is well: alarms, invariants, and the best policy so far."""
