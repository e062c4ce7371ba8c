//! A reader of Prometheus' protobuf format that shares nothing with the crate: from the bytes of the
//! wire, by the field numbers of `io/prometheus/client/metrics.proto`.

use std::collections::BTreeMap;

/// A family as the bytes tell it.
#[derive(Debug, Default)]
pub struct Family {
    /// The name.
    pub name: String,
    /// The help text.
    pub help: String,
    /// 0 is a counter, 1 a gauge, 4 a histogram.
    pub kind: u64,
    /// Its series.
    pub metrics: Vec<Metric>,
}

/// One series.
#[derive(Debug, Default)]
pub struct Metric {
    /// Label values by name.
    pub labels: BTreeMap<String, String>,
    /// Of a counter or a gauge.
    pub value: Option<f64>,
    /// Of a histogram.
    pub histogram: Option<Histogram>,
}

/// Both kinds of histograms.
#[derive(Debug, Default)]
pub struct Histogram {
    /// Samples.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
    /// Upper bound and cumulative count.
    pub classic: Vec<(f64, u64)>,
    /// Of the exponential buckets.
    pub schema: i64,
    /// The upper end of the zero bucket.
    pub zero_threshold: f64,
    /// Samples in it.
    pub zero_count: u64,
    /// Offset and length.
    pub spans: Vec<(i64, u64)>,
    /// Of the buckets in the spans.
    pub deltas: Vec<i64>,
}

impl Histogram {
    /// The exponential buckets that the spans tell of: number and samples.
    pub fn native(&self) -> Vec<(i64, u64)> {
        let mut deltas = self.deltas.iter();
        let (mut place, mut samples) = (0, 0);
        let mut buckets = Vec::new();
        for &(offset, length) in &self.spans {
            place += offset;
            for _ in 0..length {
                samples += deltas.next().expect("a delta for each bucket");
                buckets.push((place, u64::try_from(samples).expect("no negative count")));
                place += 1;
            }
        }
        assert_eq!(deltas.next(), None, "a bucket for each delta");
        buckets
    }
}

enum Field<'a> {
    Number(u64),
    Eight([u8; 8]),
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    fn number(self) -> u64 {
        match self {
            Self::Number(number) => number,
            _ => panic!("a varint was expected"),
        }
    }

    fn signed(self) -> i64 {
        zigzag(self.number())
    }

    fn double(self) -> f64 {
        match self {
            Self::Eight(bytes) => f64::from_le_bytes(bytes),
            _ => panic!("a double was expected"),
        }
    }

    fn bytes(self) -> &'a [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            _ => panic!("a string or message was expected"),
        }
    }

    fn text(self) -> String {
        String::from_utf8(self.bytes().to_vec()).expect("UTF-8")
    }
}

fn zigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..).step_by(7) {
        let (&byte, rest) = bytes.split_first().expect("the end of a varint");
        *bytes = rest;
        assert!(shift < 64, "a varint of ten bytes at most");
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    number
}

fn delimited<'a>(bytes: &mut &'a [u8]) -> &'a [u8] {
    let length = varint(bytes) as usize;
    let (piece, rest) = bytes.split_at(length);
    *bytes = rest;
    piece
}

/// The fields of a message in their order.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let field = match tag & 7 {
            0 => Field::Number(varint(&mut bytes)),
            1 => {
                let (eight, rest) = bytes.split_first_chunk().expect("eight bytes");
                bytes = rest;
                Field::Eight(*eight)
            }
            2 => Field::Bytes(delimited(&mut bytes)),
            other => panic!("wire type {other}"),
        };
        fields.push((tag >> 3, field));
    }
    fields
}

/// All families. Panics on whatever is not a delimited `MetricFamily` with known fields.
pub fn decode(mut bytes: &[u8]) -> Vec<Family> {
    let mut families = Vec::new();
    while !bytes.is_empty() {
        let mut family = Family::default();
        for (number, field) in fields(delimited(&mut bytes)) {
            match number {
                1 => family.name = field.text(),
                2 => family.help = field.text(),
                3 => family.kind = field.number(),
                4 => family.metrics.push(metric(field.bytes())),
                other => panic!("field {other} of MetricFamily"),
            }
        }
        families.push(family);
    }
    families
}

fn metric(bytes: &[u8]) -> Metric {
    let mut metric = Metric::default();
    for (number, field) in fields(bytes) {
        match number {
            1 => {
                let [(1, name), (2, value)] =
                    <[_; 2]>::try_from(fields(field.bytes())).map_err(|_| ()).expect("a pair")
                else {
                    panic!("a label's name and value were expected");
                };
                assert!(metric.labels.insert(name.text(), value.text()).is_none(), "label twice");
            }
            2 | 3 => {
                for (number, field) in fields(field.bytes()) {
                    assert_eq!(number, 1, "nothing but the value");
                    metric.value = Some(field.double());
                }
            }
            7 => metric.histogram = Some(histogram(field.bytes())),
            other => panic!("field {other} of Metric"),
        }
    }
    metric
}

fn histogram(bytes: &[u8]) -> Histogram {
    let mut histogram = Histogram::default();
    for (number, field) in fields(bytes) {
        match number {
            1 => histogram.count = field.number(),
            2 => histogram.sum = field.double(),
            3 => {
                let mut bucket = (0.0, 0);
                for (number, field) in fields(field.bytes()) {
                    match number {
                        1 => bucket.1 = field.number(),
                        2 => bucket.0 = field.double(),
                        other => panic!("field {other} of Bucket"),
                    }
                }
                histogram.classic.push(bucket);
            }
            5 => histogram.schema = field.signed(),
            6 => histogram.zero_threshold = field.double(),
            7 => histogram.zero_count = field.number(),
            12 => {
                let mut span = (0, 0);
                for (number, field) in fields(field.bytes()) {
                    match number {
                        1 => span.0 = field.signed(),
                        2 => span.1 = field.number(),
                        other => panic!("field {other} of BucketSpan"),
                    }
                }
                histogram.spans.push(span);
            }
            13 => {
                let mut packed = field.bytes();
                while !packed.is_empty() {
                    histogram.deltas.push(zigzag(varint(&mut packed)));
                }
            }
            other => panic!("field {other} of Histogram"),
        }
    }
    histogram
}
