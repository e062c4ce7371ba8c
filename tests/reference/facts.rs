//! What a program reached, so that a generator which reaches nothing is noticed.

bitflags::bitflags! {
    /// Events of one run.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Facts: u64 {
        /// Ended with channel end and device end, and nothing else.
        const CLEAN_END = 1 << 0;
        /// A program check before the device was told of the CCW.
        const CHECK_BEFORE_COMMAND = 1 << 1;
        /// A program check at a CCW that data chaining led to.
        const CHECK_IN_DATA_CHAIN = 1 << 2;
        /// A program check at a data address.
        const CHECK_AT_DATA = 1 << 3;
        /// A program check after some bytes of the CCW had moved.
        const CHECK_AFTER_DATA = 1 << 4;
        /// A protection check at a CCW.
        const PROTECTED_CCW = 1 << 5;
        /// A protection check at an IDAW.
        const PROTECTED_IDAW = 1 << 6;
        /// A protection check at data being stored.
        const PROTECTED_STORE = 1 << 7;
        /// A protection check at data being fetched.
        const PROTECTED_FETCH = 1 << 8;
        /// Incorrect length, the program had room left.
        const SHORT = 1 << 9;
        /// Incorrect length, the device wanted more.
        const LONG = 1 << 10;
        /// Incorrect length of an immediate operation.
        const IMMEDIATE_LENGTH = 1 << 11;
        /// Incorrect length was suppressed and the chain went on.
        const SUPPRESSED = 1 << 12;
        /// Unit check with sense.
        const UNIT_CHECK = 1 << 13;
        /// Intermediate status.
        const INTERRUPTED = 1 << 14;
        /// Intermediate status at a CCW that data chaining led to.
        const INTERRUPTED_IN_DATA_CHAIN = 1 << 15;
        /// Suspended.
        const SUSPENDED = 1 << 16;
        /// Suspended without an interruption, because ORB.U says so.
        const SUSPENDED_SILENTLY = 1 << 17;
        /// Resumed and ended.
        const RESUMED = 1 << 18;
        /// A status modifier skipped a CCW.
        const SKIPPED_CCW = 1 << 19;
        /// A transfer in channel to a higher address.
        const FORWARD = 1 << 20;
        /// A transfer in channel to a lower address.
        const BACKWARD = 1 << 21;
        /// A transfer in channel in a data chain.
        const TRANSFER_IN_DATA_CHAIN = 1 << 22;
        /// Data chaining took place.
        const DATA_CHAINED = 1 << 23;
        /// The device stopped exactly at the end of a CCW with the chain-data flag.
        const STOPPED_AT_CHAIN = 1 << 24;
        /// Command chaining took place.
        const COMMAND_CHAINED = 1 << 25;
        /// Bytes were stored.
        const STORED = 1 << 26;
        /// Bytes were fetched.
        const FETCHED = 1 << 27;
        /// Bytes were stored from the last to the first.
        const STORED_BACKWARD = 1 << 28;
        /// Bytes were read and not stored.
        const SKIPPED_DATA = 1 << 29;
        /// Bytes moved through format-1 IDAWs, past the first.
        const IDAWS_1 = 1 << 30;
        /// Bytes moved through format-2 IDAWs of 2 KiB blocks, past the first.
        const IDAWS_2_2K = 1 << 31;
        /// Bytes moved through format-2 IDAWs of 4 KiB blocks, past the first.
        const IDAWS_2_4K = 1 << 32;
        /// Bytes moved backward through IDAWs, past the first.
        const IDAWS_BACKWARD = 1 << 33;
        /// Bytes moved through MIDAWs, past the first.
        const MIDAWS = 1 << 34;
        /// A MIDAW list was refused.
        const MIDAWS_REFUSED = 1 << 35;
        /// Bytes moved above 4 GiB.
        const HIGH_DATA = 1 << 36;
        /// Data stopped at the limit of 24- or 31-bit addresses.
        const ADDRESS_LIMIT = 1 << 37;
        /// Format-0 CCWs were executed.
        const FORMAT_0 = 1 << 38;
        /// Format-1 CCWs were executed.
        const FORMAT_1 = 1 << 39;
        /// A program ran into a limit on loops.
        const LOOP_LIMIT = 1 << 40;
        /// A CCW, IDAW or MIDAW was fetched that the program itself had stored.
        const SELF_MODIFIED = 1 << 41;
        /// Ended with status other than channel end and device end, without unit check.
        const ODD_STATUS = 1 << 42;
        /// More bytes than a CCW can count moved in one data chain.
        const LARGE = 1 << 43;
    }
}
