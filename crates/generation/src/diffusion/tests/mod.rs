//! What several files of the folder must do together.

mod front_door; // batches, seeds, known pixels, strength, wrong networks
mod mixture; //    a Gaussian mixture, whose perfect network is known in closed form
mod reference; //  the schedulers of `diffusers`, step by step
