//! What the page shows. A section is there where its data is, and says how it is read.

pub(super) mod compare;
pub(super) mod distribution;
pub(super) mod footprint;
pub(super) mod jobs;
pub(super) mod latency;
pub(super) mod ratios;
pub(super) mod stages;
pub(super) mod throughput;
