//! The closed label sets by which a duration is kept: the stage of a request, the class of its device,
//! and what it does there.

/// Declares an enum whose variants, documentation and label values come from one table.
macro_rules! label_set {
    (
        $(#[$meta:meta])*
        pub enum $Name:ident {
            $($Variant:ident = $label:literal, $doc:literal;)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $Name {
            $(#[doc = $doc] $Variant,)+
        }

        impl $Name {
            /// Every value, in the order of declaration.
            pub const ALL: [Self; Self::COUNT] = [$(Self::$Variant),+];

            /// How many values there are.
            pub const COUNT: usize = [$($label),+].len();

            /// The label value: lower case, stable, unique within the set.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$Variant => $label,)+
                }
            }

            /// The position in [`ALL`](Self::ALL).
            #[must_use]
            pub const fn index(self) -> usize {
                self as usize
            }
        }

        impl std::fmt::Display for $Name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }
    };
}

pub(crate) use label_set;

label_set! {
    /// A part of a request's life that is timed on its own.
    ///
    /// The parts follow one another in the order of declaration; [`Total`](Self::Total) spans them
    /// all and is measured itself, so it also holds what falls between two parts.
    pub enum Stage {
        Queue = "queue", "From the submission by a vCPU until the shard takes the request.";
        Translate = "translate", "Copying the guest's channel program, checking it and emitting the shadow program.";
        Pin = "pin", "Resolving guest pages: cache look-up, and pinning what was not there.";
        Start = "start", "Writing the I/O region: handing the shadow program to the device.";
        Device = "device", "From the start until the device's interrupt is seen.";
        Deliver = "deliver", "From the interrupt until the result is in the completion ring.";
        Total = "total", "From the submission until the result is in the completion ring.";
    }
}

label_set! {
    /// The kind of device a request is for.
    ///
    /// Durations are kept by class since the classes differ by orders of magnitude: a tape that
    /// winds would hide every disk behind it.
    pub enum DeviceClass {
        Null = "null", "A device that transfers nothing, for measuring the software alone.";
        Fba = "fba", "Fixed-block disk.";
        Eckd = "eckd", "Count-key-data disk (DASD).";
        Tape = "tape", "Tape drive.";
        Other = "other", "Anything else: consoles, printers, network adapters.";
    }
}

label_set! {
    /// What a request does, by the commands of its channel program.
    pub enum Operation {
        Read = "read", "A command moves data from the device into guest memory, and none the other way.";
        Write = "write", "A command moves data from guest memory to the device.";
        Control = "control", "Neither: control and sense commands only, or the request was refused before its commands were known.";
    }
}

impl Operation {
    /// What a request did that has moved so many bytes into guest memory, and so many out of it.
    #[must_use]
    pub const fn of_bytes(read: u64, written: u64) -> Self {
        match (read, written) {
            (0, 0) => Self::Control,
            (_, 0) => Self::Read,
            _ => Self::Write,
        }
    }
}

/// What durations are kept under: requests of one kind are compared with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kind {
    /// Class of the device.
    pub class: DeviceClass,
    /// What the request does.
    pub operation: Operation,
}

impl Kind {
    /// How many there are.
    pub const COUNT: usize = DeviceClass::COUNT * Operation::COUNT;

    /// Every kind, in the order of [`index`](Self::index).
    pub fn all() -> impl Iterator<Item = Self> {
        DeviceClass::ALL.into_iter().flat_map(Self::of)
    }

    /// The kinds of one class.
    pub fn of(class: DeviceClass) -> impl Iterator<Item = Self> {
        Operation::ALL.into_iter().map(move |operation| Self { class, operation })
    }

    /// A number below [`COUNT`](Self::COUNT).
    #[must_use]
    pub const fn index(self) -> usize {
        self.class.index() * Operation::COUNT + self.operation.index()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn labels_are_unique_and_fit_for_prometheus() {
        let stages: HashSet<_> = Stage::ALL.map(Stage::name).into();
        let classes: HashSet<_> = DeviceClass::ALL.map(DeviceClass::name).into();
        assert_eq!(stages.len(), Stage::COUNT);
        assert_eq!(classes.len(), DeviceClass::COUNT);
        let operations: HashSet<_> = Operation::ALL.map(Operation::name).into();
        assert_eq!(operations.len(), Operation::COUNT);
        for name in stages.iter().chain(&classes).chain(&operations) {
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
        }
    }

    #[test]
    fn index_is_the_position_in_all() {
        for (position, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage.index(), position);
        }
        for (position, class) in DeviceClass::ALL.into_iter().enumerate() {
            assert_eq!(class.index(), position);
        }
        for (position, kind) in Kind::all().enumerate() {
            assert_eq!(kind.index(), position);
        }
        assert_eq!(Kind::all().count(), Kind::COUNT);
    }

    #[test]
    fn display_honours_width_so_that_tables_line_up() {
        assert_eq!(format!("{:<10}|", Stage::Pin), "pin       |");
    }
}
