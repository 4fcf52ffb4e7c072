-- Health of a job of any kind (the same file for each): its condition Succeeded.
local mended_by_people = { ConfigError = true, NameTaken = true, Rejected = true }

local hs = { status = "Progressing", message = "the operator has not looked at it yet" }
if obj.status == nil or obj.status.conditions == nil then
  return hs
end
local known = {}
for _, condition in ipairs(obj.status.conditions) do
  known[condition.type] = condition
end
local succeeded, stalled = known.Succeeded, known.Stalled
if succeeded == nil then
  return hs
end
-- A job that is over stays so, whatever is changed in its spec.
local over = succeeded.status == "True" or succeeded.status == "False"
if not over and obj.status.observedGeneration ~= obj.metadata.generation then
  return hs
end
hs.message = succeeded.reason
if succeeded.message ~= nil and succeeded.message ~= "" then
  hs.message = succeeded.reason .. ": " .. succeeded.message
end
if succeeded.status == "True" then
  hs.status = "Healthy"
elseif succeeded.status == "False" or mended_by_people[succeeded.reason] then
  hs.status = "Degraded"
elseif succeeded.reason == "Suspended" then
  hs.status = "Suspended"
elseif stalled ~= nil and stalled.status == "True" then
  hs.status = "Degraded"
  hs.message = stalled.reason .. ": " .. stalled.message
end
return hs
