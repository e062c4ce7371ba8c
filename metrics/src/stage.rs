//! The closed label sets by which a duration is kept: the stage of a request and the class of its
//! device.

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
        for name in stages.iter().chain(&classes) {
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
    }

    #[test]
    fn display_honours_width_so_that_tables_line_up() {
        assert_eq!(format!("{:<10}|", Stage::Pin), "pin       |");
    }
}
