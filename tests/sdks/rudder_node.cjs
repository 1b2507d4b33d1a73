// Tell the story with @rudderstack/rudder-sdk-node: rudder_node.cjs HOST WRITE_KEY VIEWS; prints the errors it was told of.
const Analytics = require('@rudderstack/rudder-sdk-node')

const [dataPlaneUrl, writeKey, views] = process.argv.slice(2)
const errors = []
const client = new Analytics(writeKey, {
  dataPlaneUrl,
  logLevel: 'silent',
  errorHandler: (error) => errors.push(error.response ? error.response.status : error.message),
})

client.page({ anonymousId: 'a1', name: 'Home', properties: { path: '/' } })
client.identify({
  userId: 'u1',
  anonymousId: 'a1',
  traits: { email: 'ann@example.com', plan: 'pro', age: 37 },
})
client.track({ userId: 'u1', event: 'Order Completed', properties: { total: 12.5, currency: 'EUR' } })
client.screen({ userId: 'u1', name: 'Start', properties: { dark: true } })
client.group({ userId: 'u1', groupId: 'acme', traits: { name: 'Acme' } })
client.alias({ userId: 'u1', previousId: 'old' })
for (let number = 0; number < Number(views); number++) {
  client.track({ userId: 'u1', event: 'Item Viewed', properties: { number } })
}
client
  .flush()
  .then(() => console.log(JSON.stringify(errors)))
