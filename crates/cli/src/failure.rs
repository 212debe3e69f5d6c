//! Exit status 0: done; 1: failed; 2: wrong use. Every failure is one message on stderr.

use smalti_pipeline::PipelineError;
use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

/// Flags that cannot be obeyed, found after they were parsed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WrongUse(pub String);

/// Runs the program and says how it went.
pub fn exit_code(program: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    // Panics that are caught (a decoder given a broken picture) are not worth a line; one that ends the program is reported below, with its place.
    let place = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&place);
    panic::set_hook(Box::new(move |information| {
        if let (Ok(mut place), Some(location)) = (seen.lock(), information.location()) {
            *place = Some(location.to_string());
        }
    }));
    match panic::catch_unwind(AssertUnwindSafe(program)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("error: {error:#}");
            if is_wrong_use(&error) { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
        Err(panic) => {
            let place = place.lock().ok().and_then(|place| place.clone()).unwrap_or_else(|| "an unknown place".to_string());
            eprintln!("error: the program went wrong at {place}: {}; hint: this is a fault of smalti, please report it with the command", message(&*panic));
            ExitCode::FAILURE
        }
    }
}

fn is_wrong_use(error: &anyhow::Error) -> bool {
    error.is::<WrongUse>() || error.downcast_ref::<PipelineError>().is_some_and(PipelineError::is_wrong_request)
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
