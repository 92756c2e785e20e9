-- The fields of INFO pmcptask, for `-script` of prometheus-redis-exporter: the exporter itself leaves out modules.
local fields = {}
for name, value in string.gmatch(redis.call('INFO', 'pmcptask'), '(pmcptask_[%w_]+):(%d+)') do
  table.insert(fields, name)
  table.insert(fields, value)
end
return fields
