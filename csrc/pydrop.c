/* A handle that Python's garbage collector found. */
#include <Python.h>

#include "parent.h"

/* In C: an exception that a signal raises inside a Python __del__ is lost. */
static void warn(int pid) {
    PyGILState_STATE state = PyGILState_Ensure();
    if (PyErr_ResourceWarning(NULL, 1, "<Process pid=%d> was dropped while it ran", pid) < 0)
        PyErr_WriteUnraisable(NULL);
    PyGILState_Release(state);
}

static void warn_set(void) {
    PyGILState_STATE state = PyGILState_Ensure();
    if (PyErr_ResourceWarning(NULL, 1, "Namespaces were dropped without close()") < 0)
        PyErr_WriteUnraisable(NULL);
    PyGILState_Release(state);
}

void sh_set_discard(void *set) {
    if (sh_set_drop(set))
        warn_set();
}

void sh_discard(void *memory) {
    struct sh_process *process = memory;
    int pid = process->pid;
    int runs = process->state == SH_RUNNING && process->kept == 1 && sh_mine(process);
    sh_abandon(process);
    if (runs)
        warn(pid);
}
