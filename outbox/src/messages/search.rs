//! Where among the pending messages one with a known id can be.
//!
//! The table has no index on ids: every insert would pay for it. But numbers grow with time, and the ids this library
//! draws begin with theirs, so a few steps by halves find the place. Around it, and among the oldest, a bounded number of
//! messages is looked at. Ids of other producers tell no time; those are looked for among the oldest alone.

use uuid::Uuid;

use super::sql;
use crate::by_hand::ask::Ask;
use crate::by_hand::sql::{micros, text};
use crate::by_hand::{Statement, unreadable};
use crate::connection::Database;
use crate::error::Error;

/// Which pending messages are looked at.
pub(crate) struct Range {
    /// The condition that says so.
    pub(crate) which: String,
    /// True when those are all.
    pub(crate) is_all: bool,
}

/// Where the message can be: among the `looked_at` oldest, or as many to either side of where its time would place it.
pub(crate) async fn range<A: Ask>(ask: &mut A, id: Uuid, looked_at: u32) -> Result<Range, Error> {
    let beyond = ask.load(Statement::new(sql::beyond(A::DATABASE, sql::PENDING, looked_at))).await?;
    let Some(beyond) = beyond.first() else { return Ok(Range { which: "seq > 0".to_owned(), is_all: true }) };
    let beyond: i64 = beyond.parse().map_err(unreadable)?;
    let mut which = format!("seq < {beyond}");
    if let Some(drawn_at) = drawn_at(id) {
        let place = place(ask, drawn_at, beyond).await?;
        let around = i64::from(looked_at);
        which = format!("({which} OR seq BETWEEN {} AND {})", place - around, place.saturating_add(around));
    }
    Ok(Range { which, is_all: false })
}

/// When this library drew the id, in microseconds since 1970.
fn drawn_at(id: Uuid) -> Option<i64> {
    if id.get_version_num() != 7 {
        return None;
    }
    let (secs, nanos) = id.get_timestamp()?.to_unix();
    i64::try_from(secs).ok()?.checked_mul(1_000_000)?.checked_add(i64::from(nanos / 1000))
}

/// The number of the first message from `low` on that was enqueued at this time or later, or the one after the last.
async fn place<A: Ask>(ask: &mut A, at: i64, mut low: i64) -> Result<i64, Error> {
    let last = Statement::new(format!(
        "-- message_last\nSELECT {} FROM outbox_messages ORDER BY outbox_messages.seq DESC LIMIT 1",
        text(A::DATABASE, "outbox_messages.seq")
    ));
    let last = ask.load(last).await?;
    let mut high = last.first().map_or(Ok(low), |last| last.parse().map_err(unreadable))?.saturating_add(1);
    // The number of a message that is there: between two of them there may be many that are not.
    let mut place = high;
    while low < high {
        let middle = low + (high - low) / 2;
        match numbers(ask.load(created(A::DATABASE, middle)).await?.first())? {
            Some((seq, created_at)) if created_at < at => low = seq + 1,
            Some((seq, _)) => (high, place) = (middle, seq),
            None => high = middle,
        }
    }
    Ok(place)
}

fn numbers(both: Option<&String>) -> Result<Option<(i64, i64)>, Error> {
    let Some((seq, at)) = both.and_then(|both| both.split_once(' ')) else { return Ok(None) };
    Ok(Some((seq.parse().map_err(unreadable)?, at.parse().map_err(unreadable)?)))
}

/// Number and time of the first message from `seq` on.
fn created(database: Database, seq: i64) -> Statement {
    let (number, at) = (text(database, "outbox_messages.seq"), text(database, &micros(database, "created_at")));
    let both = match database {
        Database::Mysql => format!("concat({number}, ' ', {at})"),
        Database::Postgres | Database::Sqlite => format!("{number} || ' ' || {at}"),
    };
    Statement::new(format!(
        "-- message_created\nSELECT {both} FROM outbox_messages WHERE seq >= {seq} ORDER BY outbox_messages.seq LIMIT 1"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_of_this_library_tell_their_time() {
        let before = chrono::Utc::now().timestamp_millis();
        let drawn = drawn_at(Uuid::now_v7()).unwrap() / 1000;
        assert!((before..=chrono::Utc::now().timestamp_millis()).contains(&drawn), "{drawn}");
        assert_eq!(drawn_at(Uuid::nil()), None);
        assert_eq!(drawn_at(Uuid::max()), None);
        let version_4 = Uuid::parse_str("936da01f-9abd-4d9d-80c7-02af85c822a8").unwrap();
        assert_eq!(drawn_at(version_4), None);
    }
}
