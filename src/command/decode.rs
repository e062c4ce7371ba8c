//! Status blocks and CCWs from hexadecimal to text.

use vfio_ccw::architecture::{Ccw0, Ccw1, Crw, Irb, IrbHead, Orb, Pmcw, Schib, Scsw};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{Failure, say};

/// Show a status block or channel-command word as text.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  vfio-ccw decode ccw1 4260100000012000")]
pub(super) struct Decode {
    /// What the bytes are.
    #[arg(value_enum)]
    what: What,
    /// The bytes in hexadecimal; spaces, colons and 0x are ignored.
    #[arg(required = true)]
    hex: Vec<String>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum What {
    Orb,
    Ccw0,
    Ccw1,
    Scsw,
    Irb,
    Pmcw,
    Schib,
    Crw,
}

impl Decode {
    /// Runs it.
    pub(super) fn run(&self) -> Result<bool, Failure> {
        say(self.text()?)?;
        Ok(true)
    }

    fn text(&self) -> Result<String, Failure> {
        let bytes = parse_hex(&self.hex.concat())?;
        match self.what {
            What::Orb => debug::<Orb>(&bytes),
            What::Ccw0 => debug::<Ccw0>(&bytes),
            What::Ccw1 => debug::<Ccw1>(&bytes),
            What::Scsw => debug::<Scsw>(&bytes),
            What::Irb if bytes.len() == size_of::<IrbHead>() => debug::<IrbHead>(&bytes),
            What::Irb => debug::<Irb>(&bytes),
            What::Pmcw => debug::<Pmcw>(&bytes),
            What::Schib => debug::<Schib>(&bytes),
            What::Crw => debug::<Crw>(&bytes),
        }
    }
}

fn debug<T>(bytes: &[u8]) -> Result<String, Failure>
where
    T: FromBytes + KnownLayout + Immutable + Unaligned + std::fmt::Debug,
{
    match T::ref_from_bytes(bytes) {
        Ok(value) => Ok(format!("{value:?}")),
        Err(_) => {
            Err(format!("{} bytes were given: it has {}", bytes.len(), size_of::<T>()).into())
        }
    }
}

fn parse_hex(text: &str) -> Result<Vec<u8>, Failure> {
    let digits: Vec<char> =
        text.replace("0x", "").chars().filter(|c| !c.is_whitespace() && *c != ':').collect();
    if !digits.len().is_multiple_of(2) {
        return Err(
            format!("{} hexadecimal digits were given: bytes have two each", digits.len()).into()
        );
    }
    let digit = |c: char| c.to_digit(16).ok_or_else(|| format!("'{c}' is not a hexadecimal digit"));
    digits.chunks(2).map(|pair| Ok((digit(pair[0])? << 4 | digit(pair[1])?) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(what: What, hex: &str) -> Result<String, String> {
        Decode { what, hex: vec![hex.to_owned()] }.text().map_err(|error| error.to_string())
    }

    #[test]
    fn blocks_become_text_and_mistakes_are_named() {
        let ccw = decode(What::Ccw1, "42601000 0001:2000").unwrap();
        assert!(ccw.contains("CCW 42 count=4096 address=0x00012000"), "{ccw}");
        assert!(
            decode(What::Scsw, "0x000040070000 01080c000000")
                .unwrap()
                .contains("CHANNEL_END | DEVICE_END")
        );
        assert!(
            decode(What::Irb, &"00".repeat(64)).is_ok()
                && decode(What::Irb, &"00".repeat(96)).is_ok()
        );
        assert_eq!(decode(What::Crw, "0000").unwrap_err(), "2 bytes were given: it has 4");
        assert!(decode(What::Crw, "0g00").unwrap_err().contains("'g'"));
        assert!(decode(What::Crw, "123").unwrap_err().contains("3 hexadecimal digits"));
    }
}
