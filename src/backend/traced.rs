//! Any backend, with each operation named, sized and timed.
