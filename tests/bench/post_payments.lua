-- wrk script: POST /payments with a key of its own for every request.
local count = 0
local start = tostring(os.time())
local headers = { ["Content-Type"] = "application/json" }

request = function()
  count = count + 1
  headers["Idempotency-Key"] = start .. "-" .. count
  local body = '{"merchant_id":"m-1001","amount":12500,"currency":"EUR","order_id":"order-' .. start .. '-' .. count
    .. '","description":"two tickets","metadata":{"channel":"web"}}'
  return wrk.format("POST", "/payments", headers, body)
end

local refused = 0
response = function(status)
  if status ~= 201 then refused = refused + 1 end
end
