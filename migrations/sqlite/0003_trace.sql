-- What the callbacks of a message are told to have been caused by: the W3C's `traceparent`, and after a space the `tracestate` if there is one.
ALTER TABLE message ADD COLUMN trace TEXT;
