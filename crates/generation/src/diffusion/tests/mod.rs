//! What several files of the folder must do together.

mod front_door; // batches, seeds, known pixels, strength, wrong networks
