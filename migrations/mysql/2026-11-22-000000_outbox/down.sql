DROP TABLE IF EXISTS
    outbox_meta, outbox_delivered, outbox_audit, outbox_dedup_keys, outbox_inbox, outbox_operations,
    outbox_destinations, outbox_relays, outbox_partitions, outbox_dead_letters, outbox_deliveries, outbox_messages;
