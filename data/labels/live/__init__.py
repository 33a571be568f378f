"""Live conversations: people write, a worker's models answer, people rank."""
