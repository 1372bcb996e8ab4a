//! Sizes as people write them: `64MiB`, `500kB`, `1024B`.
//!
//! Pure text in, value out. One whole number and one unit; a number without a unit is refused, because nobody remembers
//! whether a bare `64` meant bytes.

const UNITS: [(&str, u64); 7] = [
    ("B", 1),
    ("kB", 1_000),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
];

/// The names of the units.
pub(crate) fn units() -> Vec<&'static str> {
    UNITS.iter().map(|(name, _)| *name).collect()
}

/// Reads a size; `None` when the text is none, or more than can be counted.
pub(crate) fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let (_, each) = UNITS.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*each)
}

/// The shortest way to write a size that [`parse`] reads back.
pub(crate) fn format(bytes: u64) -> String {
    let (unit, each) =
        UNITS.iter().rev().find(|(_, each)| bytes >= *each && bytes.is_multiple_of(*each)).unwrap_or(&UNITS[0]);
    format!("{}{unit}", bytes / each)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written_back() {
        for (text, value) in [("64MiB", 64 << 20), ("500kB", 500_000), ("1GiB", 1 << 30), ("7B", 7), ("0B", 0)] {
            assert_eq!(parse(text), Some(value), "{text}");
            assert_eq!(format(value), text);
        }
        for text in ["64", "64MB5", "64mib", "1.5MiB", "MiB", "", "99999999999999GiB"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
