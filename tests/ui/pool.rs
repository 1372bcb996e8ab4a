//~ the trait bound `Pool<ConnectionManager<PgConnection>>: LoadConnection` is not satisfied

use diesel::r2d2::{ConnectionManager, Pool};

pub fn place_order(mut pool: Pool<ConnectionManager<diesel::PgConnection>>) -> Result<(), outbox::Error> {
    outbox::enqueue(&mut pool, outbox::Envelope::raw("order.placed", "1")).map(drop)
}
