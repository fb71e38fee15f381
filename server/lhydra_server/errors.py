"""The one table from Lhydra's errors to gRPC status codes."""

from grpc import StatusCode

from lhydra import errors

MAX_TEXT_CHARS = 500  # 6,000 bytes where each is four of UTF-8, sent as %F0: gRPC drops calls over trailers of 8 KiB

CODES: dict[type[errors.LhydraError], StatusCode] = {
    errors.InvalidRequest: StatusCode.INVALID_ARGUMENT,
    errors.Unsupported: StatusCode.UNIMPLEMENTED,
    errors.Unauthenticated: StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: StatusCode.PERMISSION_DENIED,
    errors.Overloaded: StatusCode.RESOURCE_EXHAUSTED,
    errors.NotReady: StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: StatusCode.DEADLINE_EXCEEDED,
    errors.LhydraError: StatusCode.INTERNAL,
    errors.ConfigError: StatusCode.INTERNAL,
    errors.UsageError: StatusCode.INTERNAL,
    errors.DataError: StatusCode.INTERNAL,
    errors.NothingNew: StatusCode.INTERNAL,
    errors.FeatureError: StatusCode.INTERNAL,
    errors.ModelError: StatusCode.INTERNAL,
    errors.BundleError: StatusCode.INTERNAL,
    errors.BundleMissing: StatusCode.INTERNAL,
    errors.BundleCorrupt: StatusCode.INTERNAL,
    errors.BundleMismatch: StatusCode.INTERNAL,
    errors.BundleRefused: StatusCode.INTERNAL,
    errors.StoreLocked: StatusCode.INTERNAL,
    errors.UserStoreError: StatusCode.UNAVAILABLE,  # Recommend does without; plays are worth sending again
    errors.MissingExtra: StatusCode.INTERNAL,
    errors.PortInUse: StatusCode.INTERNAL,
}


def status_of(error: Exception, request_id: str) -> tuple[StatusCode, str]:
    """Returns the status that a caller sees; an internal error shows no more than the request id.

    Args:
        error: what ended the call.
        request_id: of the call.

    Returns:
        The status code and its text.
    """
    code = CODES.get(type(error), StatusCode.INTERNAL) if isinstance(error, errors.LhydraError) else StatusCode.INTERNAL
    if code is StatusCode.INTERNAL:
        return code, f"internal error, request id {request_id}"
    if isinstance(error, errors.UserStoreError):
        return code, f"no user store just now, request id {request_id}"
    return code, errors.one_line(str(error), MAX_TEXT_CHARS)
