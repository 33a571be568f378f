"""The label database: tables, connections, migrations, audit."""
