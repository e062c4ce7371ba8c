//! Parts of a request's way, timed by Criterion: `cargo bench -p vfio-ccw-bench`.
//!
//! Times of a shared machine are for comparing two builds on it within minutes (`--save-baseline`,
//! `--baseline`); what the project stands on are the figures (`vfio-ccw-bench ratios`), which have their peers
//! beside them. `cargo test` runs each once, to see that it still does what it measures.

mod finish;
mod pin_hit;
mod recording;
mod rings;
mod translation;

criterion::criterion_main!(
    rings::benches,
    pin_hit::benches,
    translation::benches,
    finish::benches,
    recording::benches
);
