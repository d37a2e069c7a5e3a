//! Floor 2: the planes. Each implements what `ports` promises, and is chosen by `app`.

#[cfg(test)]
mod conformance;
pub mod memory;
