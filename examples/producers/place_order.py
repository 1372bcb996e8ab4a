#!/usr/bin/env python3
"""A producer in Python: the order and its message in one transaction.

    python3 place_order.py sqlite:shop.db ada 4200
    python3 place_order.py postgres://localhost/shop ada 4200

SQLite needs nothing but Python; PostgreSQL needs psycopg2 (`apt-get install python3-psycopg2`, or psycopg 3, whose
`connect` and `with` work alike here). The outbox' tables have to exist: `relay migrate up` creates them.
"""

import json
import sqlite3
import sys
from contextlib import closing

ORDERS = """CREATE TABLE IF NOT EXISTS orders (
    id {id} PRIMARY KEY, customer TEXT NOT NULL, total_cents INTEGER NOT NULL CHECK (total_cents > 0))"""

# `seq` and `id` are the database's to choose. With a key, what is told of one customer arrives in order.
ENQUEUE = "INSERT INTO outbox_messages (topic, ordering_key, payload) VALUES ({0}, {0}, {0})"


def place_order(cursor, placeholder, customer, total_cents):
    """Writes the order and the message. The caller opens the transaction, and commits both or neither."""
    cursor.execute(
        "INSERT INTO orders (customer, total_cents) VALUES ({0}, {0}) RETURNING id".format(placeholder),
        (customer, total_cents),
    )
    order_id = cursor.fetchone()[0]
    payload = json.dumps({"order_id": order_id, "customer": customer, "total_cents": total_cents})
    cursor.execute(ENQUEUE.format(placeholder), ("order.placed", customer, payload))
    return order_id


def on_sqlite(path, customer, total_cents):
    # isolation_level=None: the module begins no transactions of its own, so what is written here is what happens.
    with closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as conn:
        # A commit survives a power cut. Without this line, with a write-ahead log, it might not.
        conn.execute("PRAGMA synchronous = FULL")
        conn.execute(ORDERS.format(id="INTEGER"))
        conn.execute("BEGIN IMMEDIATE")
        with conn:  # commits at the end, or rolls back when something is raised
            return place_order(conn.cursor(), "?", customer, total_cents)


def on_postgres(url, customer, total_cents):
    import psycopg2

    with closing(psycopg2.connect(url)) as conn:
        with conn, conn.cursor() as cursor:
            cursor.execute(ORDERS.format(id="bigint GENERATED ALWAYS AS IDENTITY"))
        with conn, conn.cursor() as cursor:  # one transaction, as above
            return place_order(cursor, "%s", customer, total_cents)


def main():
    if len(sys.argv) != 4:
        sys.exit("usage: place_order.py sqlite:FILE|postgres://… CUSTOMER CENTS")
    url, customer, total_cents = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if url.startswith("sqlite:"):
        order_id = on_sqlite(url.removeprefix("sqlite:"), customer, total_cents)
    else:
        order_id = on_postgres(url, customer, total_cents)
    print(f"order {order_id} is placed")


if __name__ == "__main__":
    main()
