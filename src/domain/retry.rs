//! When a failed callback is tried again, and how an endpoint fares. Pure: time is an argument.
