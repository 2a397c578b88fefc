-- The error of a job, as JSON.

local function error_json(code, message, retryable)
  return cjson.encode({code = code, message = message, retryable = retryable})
end
