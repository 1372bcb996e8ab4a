//! Values on their way to and from the server, in the binary format.
//!
//! Reading never fails for what a column of the right type can hold: text is taken as bytes, a time beyond what we can
//! name (`infinity` is one) is clamped.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use chrono::{DateTime, Utc};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use crate::message::{Key, PartitionSet};
use crate::store::{StoreError, Written};

type Failed = Box<dyn Error + Sync + Send>;

/// The bytes of a column, whatever its type: `text` and `bytea` are sent as they are.
#[derive(Debug)]
pub(super) struct Octets<'a>(pub(super) &'a [u8]);

impl<'a> FromSql<'a> for Octets<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Failed> {
        Ok(Octets(raw))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

impl Octets<'_> {
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(self.0).into_owned()
    }

    pub(super) fn bytes(&self) -> Bytes {
        Bytes::copy_from_slice(self.0)
    }

    pub(super) fn key(&self) -> Key {
        Arc::from(self.0)
    }
}

/// Bytes that go into a text parameter as they are. Keys are compared byte by byte; one that came from a database
/// without an encoding need not be UTF-8.
#[derive(Debug)]
pub(super) struct RawText<'a>(pub(super) &'a [u8]);

impl ToSql for RawText<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Failed> {
        out.put_slice(self.0);
        Ok(IsNull::No)
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TEXT
    }

    to_sql_checked!();
}

/// A `timestamptz`: microseconds since the year 2000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Micros(i64);

impl<'a> FromSql<'a> for Micros {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Failed> {
        Ok(Micros(i64::from_be_bytes(raw.try_into()?)))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TIMESTAMPTZ
    }
}

impl ToSql for Micros {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Failed> {
        out.put_i64(self.0);
        Ok(IsNull::No)
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TIMESTAMPTZ
    }

    to_sql_checked!();
}

impl From<Written> for Micros {
    fn from(written: Written) -> Micros {
        Micros(written.0)
    }
}

impl Micros {
    pub(super) fn written(self) -> Written {
        Written(self.0)
    }

    pub(super) fn instant(self) -> DateTime<Utc> {
        let since_1970 = self.0.saturating_add(EPOCH_MICROS);
        DateTime::from_timestamp_micros(since_1970).unwrap_or(match since_1970 < 0 {
            true => DateTime::<Utc>::MIN_UTC,
            false => DateTime::<Utc>::MAX_UTC,
        })
    }

    /// How long after `earlier` this is; zero when it is not.
    pub(super) fn after(self, earlier: Micros) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0).try_into().unwrap_or(0))
    }
}

/// Between 1970 and 2000.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// A duration as a number of microseconds, at most a century: more would leave the range of `timestamptz`.
pub(super) fn micros(duration: Duration) -> i64 {
    const CENTURY: i64 = 36_525 * 86_400 * 1_000_000;
    i64::try_from(duration.as_micros()).unwrap_or(CENTURY).min(CENTURY)
}

/// The set as bits, for `(mask >> partition_no) & 1 = 1`.
pub(super) fn mask(partitions: PartitionSet) -> i64 {
    partitions.iter().fold(0, |mask, partition_no| mask | 1 << partition_no)
}

/// The set as numbers.
pub(super) fn numbers(partitions: PartitionSet) -> Vec<i16> {
    partitions.iter().map(i16::from).collect()
}

/// Text that a text column can hold: the server refuses NUL, and one refused value would fail the whole batch.
pub(super) fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// A transaction id that came as text.
pub(super) fn xid(text: &str) -> Result<u64, StoreError> {
    text.parse().map_err(|error| StoreError::Refused { operation: "pg_current_xact_id", source: Box::new(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_nobody_can_name_are_clamped() {
        assert_eq!(Micros(0).instant().to_rfc3339(), "2000-01-01T00:00:00+00:00");
        assert_eq!(Micros(i64::MAX).instant(), DateTime::<Utc>::MAX_UTC);
        assert_eq!(Micros(i64::MIN).instant(), DateTime::<Utc>::MIN_UTC);
        assert_eq!(Micros(i64::MIN).after(Micros(i64::MAX)), Duration::ZERO);
        assert_eq!(Micros(5).after(Micros(2)), Duration::from_micros(3));
        assert!(micros(Duration::MAX) > 0);
    }

    #[test]
    fn the_mask_has_a_bit_for_each_partition() {
        assert_eq!(mask(PartitionSet::ALL), 0xffff_ffff);
        assert_eq!(mask([0, 31].into_iter().collect()), 0x8000_0001);
    }
}
