"""The pages that people label in; `app.create_app` makes them, `server.serve` serves them."""
