//! The ledger: a balance for each customer.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::r2d2::{ConnectionManager, CustomizeConnection};

use crate::Failure;

pub(crate) type Pool = diesel::r2d2::Pool<ConnectionManager<SqliteConnection>>;

diesel::table! {
    balances (customer) {
        customer -> Text,
        cents -> BigInt,
    }
}

/// Opens the pool and creates what is missing. Of the outbox' tables only `outbox_inbox` is used here.
pub(crate) fn open(url: &str) -> Result<Pool, Failure> {
    let pool =
        Pool::builder().max_size(8).connection_customizer(Box::new(Settings)).build(ConnectionManager::new(url))?;
    let mut conn = pool.get()?;
    outbox::migrations::run(&mut conn)?;
    conn.batch_execute("CREATE TABLE IF NOT EXISTS balances (customer TEXT PRIMARY KEY, cents INTEGER NOT NULL)")?;
    Ok(pool)
}

/// Adds to a customer's balance. Done twice it would be wrong, hence the inbox.
pub(crate) fn book(conn: &mut SqliteConnection, customer: &str, cents: i64) -> Result<(), outbox::Error> {
    diesel::insert_into(balances::table)
        .values((balances::customer.eq(customer), balances::cents.eq(cents)))
        .on_conflict(balances::customer)
        .do_update()
        .set(balances::cents.eq(balances::cents + cents))
        .execute(conn)?;
    Ok(())
}

/// A commit survives a power cut, which is what 2xx promises; a second writer waits for the first.
#[derive(Debug)]
struct Settings;

impl CustomizeConnection<SqliteConnection, diesel::r2d2::Error> for Settings {
    fn on_acquire(&self, conn: &mut SqliteConnection) -> Result<(), diesel::r2d2::Error> {
        conn.batch_execute("PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")
            .map_err(diesel::r2d2::Error::QueryError)
    }
}
