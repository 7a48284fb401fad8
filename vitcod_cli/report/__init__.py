"""``vitcod report``: runs as one HTML page that needs no network."""
