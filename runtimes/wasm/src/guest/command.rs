//! Runs a program: a module's `_start`, or a component's `wasi:cli/run`.

use wasmtime::component::Component;
use wasmtime::{Engine, InstancePre, Linker, Module, Store};
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::p2::bindings::CommandPre;

use super::cpu::Cpu;
use super::end::Exit;
use super::limits::{Budget, Limits};
use super::wasi::{self, ComponentState};

/// A program, linked and not begun.
pub(super) enum Program {
    Module(Box<Store<ModuleState>>, InstancePre<ModuleState>),
    Component(Box<Store<ComponentState>>, CommandPre<ComponentState>),
}

pub(super) struct ModuleState {
    wasi: WasiP1Ctx,
    limits: Limits,
}

impl Program {
    /// # Errors
    ///
    /// The module imports what there is not, or is no program.
    pub(super) fn module(
        engine: &Engine,
        module: &Module,
        mut wasi: WasiCtxBuilder,
        budget: Budget,
        cpu: Cpu,
    ) -> wasmtime::Result<Self> {
        let state = ModuleState { wasi: wasi.build_p1(), limits: Limits::new(&budget) };
        let mut store = Store::new(engine, state);
        store.limiter(|state| &mut state.limits);
        cpu.apply(&mut store);
        let mut linker = Linker::new(engine);
        wasmtime_wasi::p1::add_to_linker_async(&mut linker, |state: &mut ModuleState| {
            &mut state.wasi
        })?;
        if module.get_export("_start").is_none() {
            return Err(wasmtime::Error::msg(
                "the module has no function _start: build it as a program, not as a library",
            ));
        }
        Ok(Self::Module(Box::new(store), linker.instantiate_pre(module)?))
    }

    /// # Errors
    ///
    /// The component imports what there is not, or is no program.
    pub(super) fn component(
        engine: &Engine,
        component: &Component,
        mut wasi: WasiCtxBuilder,
        budget: Budget,
        cpu: Cpu,
    ) -> wasmtime::Result<Self> {
        let mut store = Store::new(engine, ComponentState::new(wasi.build(), &budget));
        store.limiter(|state| &mut state.limits);
        cpu.apply(&mut store);
        let linker = wasi::link(engine)?;
        let command = CommandPre::new(linker.instantiate_pre(component)?)?;
        Ok(Self::Component(Box::new(store), command))
    }

    /// Runs it to its end.
    pub(super) async fn run(self) -> Exit {
        match self {
            Self::Module(mut store, instance) => {
                let result = async {
                    let instance = instance.instantiate_async(&mut *store).await?;
                    let start = instance.get_typed_func::<(), ()>(&mut *store, "_start")?;
                    start.call_async(&mut *store, ()).await
                };
                match result.await {
                    Ok(()) => Exit::with(0),
                    Err(err) => Exit::failed(&err, store.data().limits.reached()),
                }
            }
            Self::Component(mut store, command) => {
                let result = async {
                    let command = command.instantiate_async(&mut *store).await?;
                    command.wasi_cli_run().call_run(&mut *store).await
                };
                match result.await {
                    Ok(Ok(())) => Exit::with(0),
                    // Preview 2 has success and failure, and no numbers.
                    Ok(Err(())) => Exit::with(1),
                    Err(err) => Exit::failed(&err, store.data().limits.reached()),
                }
            }
        }
    }
}
