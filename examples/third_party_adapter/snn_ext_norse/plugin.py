"""Hooks of the norse adapter. Nothing here imports norse until a model needs it."""

from snn_ext import AdapterInfo, comes_from, hookimpl, swap_class


@hookimpl
def snn_ext_adapter():
    return AdapterInfo("norse", "norse", "norse", methods=("imp", "mpbn", "bntt", "tebn"))


@hookimpl
def snn_ext_describe(module, path, root):
    if comes_from(module, "norse"):
        from snn_ext_norse.neurons import describe

        return describe(module)


@hookimpl
def snn_ext_replace(site, methods, features):
    from snn_ext_norse.neurons import MIXINS

    swap_class(site.module, *dict.fromkeys(MIXINS[name] for name in MIXINS if name in methods))
    return site.module


@hookimpl
def snn_ext_call(module, args, kwargs):
    from snn_ext_norse.neurons import call_of

    return call_of(module, *args, **kwargs)


@hookimpl
def snn_ext_cases():
    from snn_ext_norse.cases import CASES

    return CASES
