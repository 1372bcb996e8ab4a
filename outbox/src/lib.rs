//! Transactional outbox for diesel.
