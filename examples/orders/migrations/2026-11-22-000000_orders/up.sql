CREATE TABLE orders (
    id         uuid    PRIMARY KEY,
    -- The message that was enqueued with the order. A repeated request is told by it.
    message_id uuid    NOT NULL UNIQUE,
    customer   text    NOT NULL,
    item       text    NOT NULL,
    quantity   integer NOT NULL CHECK (quantity > 0),
    status     text    NOT NULL DEFAULT 'placed'
);

CREATE TABLE stock (
    item      text    PRIMARY KEY,
    available integer NOT NULL CHECK (available >= 0)
);
INSERT INTO stock (item, available) VALUES ('teapot', 100), ('samovar', 1);
