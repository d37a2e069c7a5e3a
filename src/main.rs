//! The herenow program.

fn main() {}
