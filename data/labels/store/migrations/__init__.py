"""Changes of the tables, one file each, run by Alembic when a database is opened."""
