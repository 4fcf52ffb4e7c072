-- Health of a ModelDeployment: its conditions Ready and AdaptersReady.
local mended_by_people = { ConfigError = true, NameTaken = true, Rejected = true }

local hs = { status = "Progressing", message = "the operator has not looked at it yet" }
if obj.status == nil or obj.status.conditions == nil or obj.status.observedGeneration ~= obj.metadata.generation then
  return hs
end
local known = {}
for _, condition in ipairs(obj.status.conditions) do
  known[condition.type] = condition
end
local ready, adapters = known.Ready, known.AdaptersReady
if ready == nil then
  return hs
end
hs.message = ready.reason .. ": " .. ready.message
if mended_by_people[ready.reason] then
  hs.status = "Degraded"
elseif ready.reason == "ScaledToZero" then
  hs.status = "Healthy"
elseif adapters ~= nil and adapters.reason == "AdapterFailed" then
  -- The others are served on, and so is the version before, where there is one.
  hs.status = "Degraded"
  hs.message = adapters.reason .. ": " .. adapters.message
elseif ready.status == "True" and ready.reason == "Ready" then
  if adapters ~= nil and adapters.status ~= "True" then
    hs.message = adapters.reason .. ": " .. adapters.message
  else
    hs.status = "Healthy"
  end
end
return hs
