//~ an outbox cannot be used through a connection with the backend `
//~ with a `diesel::MultiConnection`, match on it and use the connection inside
//~ otherwise switch on the feature `postgres`, `mysql` or `sqlite` of `outbox`

#[derive(diesel::MultiConnection)]
pub enum Any {
    Postgres(diesel::PgConnection),
    Sqlite(diesel::SqliteConnection),
}

pub fn place_order(conn: &mut Any) -> Result<(), outbox::Error> {
    outbox::enqueue(conn, outbox::Envelope::raw("order.placed", "1")).map(drop)
}
