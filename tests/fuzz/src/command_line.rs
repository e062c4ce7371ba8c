//! The parts of the `vfio-ccw` command that read what its user writes. They are private to the
//! command; here they are compiled from the same files.

#[allow(dead_code)]
#[path = "../../../src/command/decode.rs"]
mod decode_job;
#[allow(dead_code)]
#[path = "../../../src/command/options.rs"]
mod service_options;

use std::cell::RefCell;
use std::error::Error;
use std::fmt::Display;

use clap::Parser;
use vfio_ccw::ServiceBuilder;
use vfio_ccw_load::Access;

/// As in the command.
type Failure = Box<dyn Error + Send + Sync>;

thread_local! {
    static SAID: RefCell<String> = RefCell::default();
}

/// As in the command, but kept instead of printed.
fn say(text: impl Display) -> Result<(), Failure> {
    SAID.set(text.to_string());
    Ok(())
}

#[derive(Debug, Parser)]
#[command(name = "vfio-ccw", no_binary_name = true)]
struct DecodeArguments {
    #[command(flatten)]
    decode: decode_job::Decode,
}

/// What `vfio-ccw decode` says for these words; `None` where they cannot be read at all.
pub fn decode<'a>(words: impl IntoIterator<Item = &'a str>) -> Option<Result<String, String>> {
    let arguments = DecodeArguments::try_parse_from(words).ok()?;
    let result = arguments.decode.run();
    Some(result.map(|_| SAID.take()).map_err(|failure| failure.to_string()))
}

/// Options of the main job that are not numbers alone.
#[derive(Debug, Parser)]
#[command(name = "vfio-ccw", no_binary_name = true)]
pub struct Options {
    #[command(flatten)]
    service: service_options::ServiceOptions,
    /// Size of the volume.
    #[arg(long, value_parser = service_options::bytes, default_value = "1MiB")]
    pub size: u64,
    /// Bytes of a transfer.
    #[arg(long, value_parser = service_options::bytes, default_value = "4KiB")]
    pub block: u64,
    /// Which blocks.
    #[arg(long, value_parser = service_options::access, default_value = "uniform")]
    pub access: Access,
    /// Share of reads.
    #[arg(long, default_value_t = 70)]
    pub read_percent: u8,
    /// Subchannels.
    #[arg(long, default_value_t = 4)]
    pub subchannels: usize,
    #[arg(long)]
    metrics: Option<service_options::MetricsAddress>,
}

impl Options {
    /// Reads them; the error is what the user sees.
    pub fn read<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        Options::try_parse_from(words).map_err(|error| error.to_string())
    }

    /// A service as they describe it.
    pub fn builder(&self) -> ServiceBuilder {
        self.service.builder(self.subchannels)
    }
}
