"""Signatures for the API reference as a caller needs them: griffe knows dataclasses, not attrs."""

from __future__ import annotations

from griffe import Attribute, Class, Extension, Function, Parameter, ParameterKind, Parameters


class CallersView(Extension):
    """Gives each attrs class the `__init__` that attrs makes of its fields, and leaves out what no caller passes."""

    def on_function(self, *, func: Function, **_) -> None:
        """Leave out `**unknown: Never`, which only says what may be meant by a wrong keyword."""
        for parameter in list(func.parameters):
            if str(parameter.annotation) == "Never":
                del func.parameters[parameter.name]

    def on_class(self, *, cls: Class, **_) -> None:
        """Add the method, unless the class has one."""
        made = any(str(decorator.callable_path).startswith("attrs.") for decorator in cls.decorators)
        if not made or "__init__" in cls.members:
            return
        fields = [each for each in cls.members.values() if isinstance(each, Attribute) and _is_field(each)]
        parameters = [Parameter("self", kind=ParameterKind.positional_or_keyword), *map(_parameter, fields)]
        init = Function("__init__", parameters=Parameters(*parameters), returns="None", parent=cls)
        cls.set_member("__init__", init)


def _is_field(attribute: Attribute) -> bool:
    if attribute.annotation is None or "property" in attribute.labels:
        return False
    return "init=False" not in str(attribute.value).replace(" ", "")


def _parameter(field: Attribute) -> Parameter:
    """A parameter with the field's default; a factory is shown as what it makes."""
    default = None if field.value is None else str(field.value)
    if default is not None and default.startswith("attrs.field("):
        default = _default_of_field(field.value)
    return Parameter(
        field.name.lstrip("_"),
        annotation=field.annotation,
        kind=ParameterKind.positional_or_keyword,
        default=default,
    )


def _default_of_field(call) -> str | None:
    given = {each.name: str(each.value) for each in call.arguments if hasattr(each, "name") and hasattr(each, "value")}
    if "factory" in given:
        return f"{given['factory']}()"
    return given.get("default")
