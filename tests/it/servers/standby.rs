//! Servers that take no writes: a relay that starts is refused, one that runs waits.
